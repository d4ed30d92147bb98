"""People's judgements: two videos side by side, names hidden, and ratings from what was preferred."""
