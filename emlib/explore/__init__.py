"""Interactive exploration of a study in JupyterLab: its answers, two runs side by side, and the user's own questions.

`answers` makes tables of the answers in the store, `talk` asks models a question, and `bench` has the widgets for both,
which notebook 19 shows.
"""
