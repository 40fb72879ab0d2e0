// IOPageTable: to come.
