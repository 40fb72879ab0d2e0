// SMMUv3Spec: to come.
