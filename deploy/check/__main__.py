import sys

from deploy.check.check_manifests import main

sys.exit(main(sys.argv[1:]))
