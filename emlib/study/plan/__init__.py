"""What a study will take, from its profile alone: no model, no data, no network."""
