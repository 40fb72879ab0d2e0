// SystemBus: to come.
