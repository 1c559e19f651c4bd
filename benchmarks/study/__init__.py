"""Does distillation help, with a real teacher: how much text a student needs, by which loss."""
