"""Masked-language-model pretraining: recipe -> plan -> command -> run.

The planning half imports no torch and answers in a second:

    recipe, recipe_data     what a job is: the schema
    recipe_check            every problem of a recipe at once
    recipe_file             find, extend, override; strict_yaml reads
    hardware                profiles (profiles.yaml)
    schedule                rates and cadences as functions of the step
    plan                    recipe + profile + corpus -> every derived number
    corpus                  how much text there is; the store behind a recipe
    command, request, run   the command's text; the command line; executing it
    verdict, console, cli   how a run ended; the terminal; the verbs

The working half:

    train                   the loop; start reading here
    world, engine           what a launcher started; an Accelerator that is what was planned
    build, optim            settings become objects
    evaluate                the frozen masks
    checkpoint, manifest    whole or absent; stop: a signal ends the run with one
    opening, track, display what is logged, and what a person sees
    folder, record, events  the run folder, written and read
    report, chart, figure   one HTML file
    predict, export, judge, preview, demo   the other verbs
"""
