"""``python -m cnet_deploy`` is ``cnet-deploy``."""

from cnet_deploy.cli import main

if __name__ == "__main__":
    main(prog_name="cnet-deploy")
