"""Commands about mounts as a part of this machine: their options, one command, the boot, and what is wrong."""
