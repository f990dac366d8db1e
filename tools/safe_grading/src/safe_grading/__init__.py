"""Grading a class on top of nbgrader: what nbgrader_config.py plugs in, and tools/grade.py drives.

The steps of nbgrader's pipeline, in their order:

restore.py   gives a submission the cells of the release again, whatever has become of them
execute.py   runs it, and says under which limits
scores.py    starts from zero, and leaves to a person what could not be trusted; late work
harmless.py  leaves in the graded copy only what cannot run in a browser
feedback.py  keeps hidden tests out of the pages that students get

What they stand on:

sandbox.py   where a submission's kernel runs: without network, without the course's files
kernel.py    runs cells there, within limits, and survives whatever they do
guard.py     runs inside the kernel: puts back what a submission replaced
submission.py  runs the cells one by one, and goes on when the kernel dies
trust.py     asks the guard around each test, and decides whether its score counts
cleaning.py  HTML, Markdown, drawings and text in which nothing can run
pages.py     how the Formgrader and the feedback show them, and a policy in the head of each page
reading.py   what can be read from code without running it
report.py    the lines for the lecturer

Before all that, `nbgrader zip_collect` sorts what a class handed in:

collect.py   decides about each file, says so, and hands nbgrader what is new
unpack.py    takes archives apart, and leaves what is none of a student's or could do harm
platforms.py who handed a file in, by the names that learning platforms make
folders.py   the same where only folders and files have names
recognise.py whether a file is the assignment's notebook
names.py     what may be a student's name and a folder's
"""
