"""The inner side of `gymq.process.sandbox`: makes the walls, starts the program within them, and ends it at its limit.

    warden    waits for the end or the limit, then kills and cleans up
    init      with namespaces: pid 1 of the new ones; when it ends the kernel kills all within
    program   no privileges, no other open files, its limits; only it touches the program's own data

A run is a fresh interpreter, `python -I -S`, which may fork and change its identity without harm to the caller. It imports
these modules as a package of their own, nothing of gymq, and little else: every run pays for each import.
"""
