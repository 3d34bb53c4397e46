"""How fast the engine is, and that being fast changes nothing: a plain reference to compare it with."""
