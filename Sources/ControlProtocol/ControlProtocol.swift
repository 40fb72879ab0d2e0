// ControlProtocol: to come.
