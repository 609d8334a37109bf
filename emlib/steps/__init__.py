"""What artefacts are: pure records with keys, inputs and costs. Nothing is made here."""
