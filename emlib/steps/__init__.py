"""The kinds of artefacts, as pure records with keys, inputs and costs. `emlib.make` makes them."""
