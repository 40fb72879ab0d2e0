// SMMUv3: to come.
