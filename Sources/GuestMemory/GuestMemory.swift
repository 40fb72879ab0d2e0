// GuestMemory: to come.
