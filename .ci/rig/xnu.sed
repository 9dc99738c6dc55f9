# What XNU's accept and connect do otherwise than Linux's: see kqueue/kqueue.go.
s/syscall\.Accept(/unix.AcceptInheriting(/
s/syscall\.Connect(/unix.ConnectElsewhere(/
