// SMMUClient: to come.
