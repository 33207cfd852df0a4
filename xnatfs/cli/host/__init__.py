"""Commands about mounts as a part of this machine: for one command, at the boot, when something is wrong; views."""
