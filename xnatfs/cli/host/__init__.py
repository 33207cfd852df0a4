"""Commands about mounts as a part of this machine: for one command, at the boot, in trouble; and what they show."""
