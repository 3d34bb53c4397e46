"""The parts of the pocket-model recipe: facts, corpus, tokenizer, training, report, benchmark."""
