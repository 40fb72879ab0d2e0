// Configuration space.

import PCIFunction
import Testing
