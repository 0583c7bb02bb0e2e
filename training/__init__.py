"""The training program that Minos starts on every node; it runs without Minos too.

Read `finetune.py` first: it is the whole run from top to bottom and calls the others.

    finetune.py     the run: arguments, loop, evaluation, end (start here)
    config.py       the settings, their defaults and their checks; no torch, also run on the control node
    data.py         instruction pairs or plain text -> token rows; which rows belong to which step
    model.py        model and tokenizer: from scratch, a local directory or a hub id
    optimizer.py    AdamW and the learning rate of each step
    distributed.py  device, backend, process group, the one small all-reduce per step
    checkpoint.py   step-N directories that are complete or invisible
    metrics.py      rank 0's metrics.jsonl, TensorBoard, plot and progress lines
    lifecycle.py    start, stop requests, signals; records why a run failed
    state.py        what became of the job (running, done, stopped, failed); no torch, units read it
    files.py        write a file so that a crash leaves the old one or the new one
    demo_data.py    makes the demo's instruction pairs from the installed Ansible documentation; no torch
    configs/        demo.yaml (tiny model, from scratch) and text.yaml (a plain text file of yours)
"""
