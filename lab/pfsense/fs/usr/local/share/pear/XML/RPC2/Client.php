<?php
/* Included by pfSense's own sources; nothing of it is needed here. */
