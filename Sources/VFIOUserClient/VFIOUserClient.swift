// A client of vfio-user device servers.
