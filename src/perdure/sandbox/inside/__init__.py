"""What runs inside the box. Standard library only, any Python from 3.9 on, and nothing of Perdure outside this folder.

`bundle.py`, outside, carries these files in as text: the box sees no folder of the server's.

    warden.py   process 1: speaks with the server, forks the kernel, watches its limits; runs none of the model's code
    kernel.py   the process that runs the model's code, a cell at a time; `solo.py` is both where nothing can fork
    cell.py     IPython's semantics of one cell: last expression shown, top-level await, tracebacks
    walls.py    what a process does to itself before it runs foreign code: rlimits, Landlock, seccomp

Rule: whatever the kernel says may be forged by the code that it runs, so the warden believes it nothing but outputs.
"""
