"""Control: the only room that acts on the running server: load -> warm -> publish -> drain ->
unload."""
