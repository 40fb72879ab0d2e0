// DeviceTree: to come.
