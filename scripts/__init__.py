"""Things one runs rarely: train the bundled model, measure results, take screenshots."""
