"""Solutions to the exercises of the notebooks: one file a notebook, one function an exercise.

The text of a function is the answer in words. The function computes what the answer says; the
tests run every one with small settings.
"""
