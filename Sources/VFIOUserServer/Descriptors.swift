// The C library's close, where a type has a method of that name.

import Glibc

func closeDescriptor(_ descriptor: CInt) { _ = close(descriptor) }
