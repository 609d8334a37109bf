"""Tables, figures, exports and pages from the records in the store."""
