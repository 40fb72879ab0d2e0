// PCIe host bridges of the machine.
