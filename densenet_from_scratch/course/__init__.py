"""What the course adds to the library: figures, interactive figures, and checks of exercises.

It needs the extra ``course``; the library never imports it.
"""
