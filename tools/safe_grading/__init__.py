"""Grading a class on top of nbgrader: what nbgrader_config.py plugs in, and tools/grade.py drives.

sandbox.py        where a submission's kernel runs: without network, without the course's files
kernel.py         runs cells there, within limits, and survives whatever they do
guard.py          runs inside the kernel: puts back what a submission replaced
preprocessors.py  the steps of nbgrader's pipeline that use them
"""
