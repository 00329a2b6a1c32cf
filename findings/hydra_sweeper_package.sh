#!/usr/bin/env bash
# hydra-core 1.3.8: a sweeper is refused unless the name of its package begins with "hydra_plugins".
#
# A Sweeper named in the configuration by `_target_` and importable is not enough: Hydra compares the text of the class
# path and raises RuntimeError. The same file under a folder `hydra_plugins` works. So an application can't keep its
# sweeper in its own package, though `hydra.utils.instantiate` takes classes of any package.
#
# Output seen (Python 3.11):
#   my_app.sweeper.Recorder: RuntimeError: Invalid plugin 'my_app.sweeper.Recorder': not the hydra_plugins package
#   hydra_plugins.my_app.sweeper.Recorder: swept ['+seed=1,2']
set -euo pipefail
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
cd "$tmp"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check hydra-core==1.3.8 omegaconf==2.3.1
mkdir -p conf/hydra/sweeper hydra_plugins my_app
cat >my_app/sweeper.py <<'EOF'
from hydra.plugins.sweeper import Sweeper


class Recorder(Sweeper):
    def setup(self, *, hydra_context, task_function, config):
        pass

    def sweep(self, arguments):
        print("swept", arguments)
EOF
touch my_app/__init__.py
cp -r my_app hydra_plugins/my_app
cat >app.py <<'EOF'
import hydra


@hydra.main(version_base="1.3", config_path="conf")
def main(config):
    pass


main()
EOF
for class in my_app.sweeper.Recorder hydra_plugins.my_app.sweeper.Recorder; do
  echo "_target_: $class" >conf/hydra/sweeper/own.yaml
  venv/bin/python app.py --multirun hydra/sweeper=own +seed=1,2 >log 2>&1 || true
  echo "$class: $(tail -n 1 log)"
done | tee seen
diff seen - <<'EOF'
my_app.sweeper.Recorder: RuntimeError: Invalid plugin 'my_app.sweeper.Recorder': not the hydra_plugins package
hydra_plugins.my_app.sweeper.Recorder: swept ['+seed=1,2']
EOF
