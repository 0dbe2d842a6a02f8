# docker build -t umae . && docker run --rm -p 8888:8888 -u "$(id -u)" -v "$PWD/outputs:/outputs" umae
# Runs as any user id: only /outputs, /tmp and the notebooks that a person saves are written. A user
# id without an entry in /etc/passwd has no name, and torch asks for one: LOGNAME.
FROM python:3.11-slim
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc git libc6-dev libgomp1 make \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /umae
COPY pyproject.toml constraints.txt README.md ./
COPY scripts ./scripts
COPY lib ./lib
RUN python scripts/set_up.py --cpu 1 && rm -rf /root/.cache
COPY . .
ENV PATH=/umae/.venv/bin:$PATH HOME=/tmp LOGNAME=umae UMAE_OUTPUTS=/outputs PYTHONDONTWRITEBYTECODE=1
RUN mkdir /outputs && chmod 1777 /outputs && chmod -R a+w notebooks
EXPOSE 8888
CMD ["jupyter", "lab", "notebooks/00_start.ipynb", "--ServerApp.root_dir=/umae", "--ip=0.0.0.0", "--no-browser", "--allow-root"]
