// Tests to come with the target.

import Testing
