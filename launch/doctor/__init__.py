"""What a machine has and lacks for a profile: cards, memory, disks, compilers, packages, the hub."""
