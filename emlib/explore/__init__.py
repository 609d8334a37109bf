"""Looking around in a study by hand, in JupyterLab: its answers, two runs side by side, questions of one's own.

`answers` gathers and compares what is in the store, as tables; `talk` puts a question to models; `bench` gives both
their widgets, which notebook 16 shows.
"""
