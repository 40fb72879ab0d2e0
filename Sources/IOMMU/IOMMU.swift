// IOMMU: to come.
