"""Does the released code's wrong diagonal matter? Four arms of OTTER on two settings of the table; see its README.md."""
