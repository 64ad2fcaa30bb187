"""Masked-language-model pretraining: recipe -> plan -> command -> run.

The planning half imports no torch and answers in a second:

    recipe, recipe_data     what a job is: the schema
    recipe_check            every problem of a recipe at once
    recipe_file             find, extend, override; strict_yaml reads
    recipe_change, recipe_policy   what a resume may find changed, key by key
    hardware, sharding      profiles (profiles.yaml); what DeepSpeed splits and offloads
    steps, schedule         the length of a run; rates and cadences as functions of the step
    plan                    recipe + profile + corpus -> every derived number
    placement, forecast     where a step lies, and what it takes; batch, options
    costing/                sizes, FLOPs, memory (traced in a child process), time, the ladder
    corpus                  how much text there is; the store behind a recipe
    command, rendering      the command's text and the files that it names
    request, run, slurm     the command line; executing it, here or as a batch job
    calibrate               ten real steps, measured
    doctor/                 what a machine lacks
    verdict, console, cli   how a run ended; the terminal; the verbs
    lock, process           one writer a folder; liveness, pulse: ranks that are heard of
    redaction, terminal     secrets and control characters stay out

The working half:

    train                   the loop; start reading here
    world, engine           what a launcher started; an Accelerator that is what was planned
    build, optim, new_rows  settings become objects
    step                    one update of the weights; course, spikes: what is done about wrong numbers
    progress, stopping      what a run knows of itself; when it ends by itself; stop: when a signal ends it
    evaluate, judging/      the frozen masks; further metrics
    checkpoints/            saving, keeping, choosing and reading them
    agreement               what one rank meets all ranks know
    fault                   breaks a run on purpose
    opening, watching/      what is logged, and what a person sees
    folder, record, events  the run folder, written and read
    report, reporting/      one HTML file; card, cards/, examples: the README of a model
    sweep, sweeping/        several runs of one recipe
    predict, export, judge, preview, demo   the other verbs
"""
