"""The makers, which make artefacts and load the model library."""
