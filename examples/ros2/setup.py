from setuptools import setup

setup(
    name="patchcaption_ros",
    version="0.1.0",
    packages=["patchcaption_ros"],
    data_files=[
        ("share/ament_index/resource_index/packages", ["resource/patchcaption_ros"]),
        ("share/patchcaption_ros", ["package.xml"]),
        ("share/patchcaption_ros/launch", ["launch/captions.launch.py"]),
    ],
    install_requires=["setuptools"],
    zip_safe=True,
    entry_points={"console_scripts": ["captions = patchcaption_ros.node:main"]},
)
