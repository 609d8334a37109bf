"""Tables, figures, exports and pages from the records in the store.

`tables/` and `figures/` hold what serves several topics, `paper/` what the paper published, and `book/` the HTML pages.
A module beside them has the tables and figures of one topic.
"""
