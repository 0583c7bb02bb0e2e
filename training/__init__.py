"""The training program that Minos starts on every node; it runs without Minos too.

Read `finetune.py` first: it is the whole run from top to bottom and calls the others.

What one starts, each with `python -m training.<name>`:

    finetune        fine-tune a causal language model on any number of processes
    hello           a small regression, for a first test of a cluster
    script          run somebody's own script as a worker of a job, and keep the job's state file for it
    prepare         before a job: fetch the model once, tokenise and pack the data once, for all nodes
    smoke           check one machine: GPU, bf16, matrix products, memory, an all-reduce
    config          check a config file; no torch, also run on the control node
    ledger          prove from a job's records that every row was used once per epoch
    state           what became of a job (running, done, stopped, failed); no torch, units and playbooks read it
    demo_data       make the demo's instruction pairs from the installed Ansible documentation; no torch

What they are made of:

    settings.py     every setting with its meaning, default and limits; config.py reads them from YAML and key=value
    configs/        presets: complete config files to start from
    data/           files or hub data sets -> packed rows of tokens on disk -> micro-batches; which step uses which rows
    models/         fetching, loading, adapters, attention between packed documents, loss, memory estimate, export
    distributed.py  device, backend, process group, how long ranks wait for each other, the small numbers they exchange
    rendezvous.py   where the agents of a job meet; meeting.py: whether all are still there while their workers do
    connections.py  dead machines, noticed by the kernel
    optimizer.py    AdamW and the learning rate of each step
    progress.py     how far a run is; evaluation.py: the held-out loss; results.py: what a finished run leaves
    checkpoints/    save and restore any DDP run, also yours (README.md there)
    storage/        what that writes with: processes beside the training one, for the disk and for the shared directory
    reports/        progress lines, metrics, TensorBoard, the picture, figures of every machine, profiles
    errors.py       what the user can mend
    failures/       why a job ended: the first failure of all nodes, its likely cause, what to do; no torch
    lifecycle.py    start, signals, and why a run failed; folders.py: which file is where
    files.py        write a file so that a crash leaves the old one or the new one
    examples/       DDP scripts of one's own: with these checkpoints, and one that knows nothing of Minos
"""
