"""Runs untrusted programs where they can neither read nor reach nor leave behind anything.

Walls, from the outside in: namespaces (user, process, mount, network, IPC, names) with a root that has interpreters
and nothing else; Landlock; seccomp; resource limits; a clock. A program must break several to do harm. What is left
open: it sees the kernel's version and the processor, can burn its CPU seconds and memory, and can attack the system
calls that it is allowed.
"""
