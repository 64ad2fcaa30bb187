"""Masked-language-model pretraining: recipe -> plan -> command -> run.

The planning half imports no torch and answers in a second:

    recipe, recipe_data     what a job is: the schema
    recipe_check            every problem of a recipe at once
    recipe_file             find, extend, override; strict_yaml reads
    recipe_change           what a resume may find changed
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
    redaction, terminal     secrets and control characters stay out; removal: what may be deleted

The working half:

    train                   the loop; start reading here
    world, engine           what a launcher started; an Accelerator that is what was planned
    build, optim, new_rows  settings become objects
    step                    one update of the weights
    evaluate, judging/      the frozen masks; further metrics
    fault                   breaks a run on purpose
    checkpoint, manifest    whole or absent; stop: a signal ends the run with one
    saving, writer          when a run is saved, in the background; snapshot, space, rotation: its parts
    choice, resume          where a run starts; agreement: what one rank meets all ranks know
    opening, track, display what is logged, and what a person sees
    folder, record, events  the run folder, written and read
    report, chart, figure   one HTML file
    predict, export, judge, preview, demo   the other verbs
"""
