"""The bench: trainings with a known answer, some of which collapse.

What the library concludes from a run (an alarm, a diagnosis, a choice of a checkpoint) is judged by
these runs. One command trains and scores all of them, 344 of half a minute to two on one core:

    python -m tests.benchmarks.collapse_bench run --output bench-output \
        --cifar10 cifar10 --workers 12

Run it from the root of a checkout. `--cifar10` names the folder that holds CIFAR-10 as
`train/<class>/*` and `test/<class>/*`; without it the runs on CIFAR-10 are left out. A finished
run is not repeated, so the same command resumes an interrupted bench. `--part development` or
`--part unseen` trains one part, `--only TEXT` the runs whose name holds the text.

    python -m tests.benchmarks.collapse_bench evaluate --output bench-output --part development

says what became of each run, against its healthy siblings, and how often the alarm was right.

A run's folder holds what `lightly-collapse pretrain` writes (`config.yaml`, `last.ckpt`), the
tracker's `collapse.csv`, a report of every measured checkpoint and `run.json`, which is written
last. `lightly-collapse` commands take `last.ckpt` as any other.
"""
