"""The elementwise work of a dense block, in one pass over memory (chapter 10)."""
