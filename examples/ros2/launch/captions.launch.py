"""Starts the node: `ros2 launch patchcaption_ros captions.launch.py bundle:=/path/to/engines/demo`."""

from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node

ARGUMENTS = {
    "bundle": ("engines/demo", "the bundle's folder"),
    "backend": ("auto", "as in Captioner.load"),
    "compressed": ("false", "whether the images are sensor_msgs/CompressedImage"),
    "image": ("/camera/image_raw", "the topic of the images"),
    "detections": ("/detector/detections", "the topic of the boxes on them"),
    "captions": ("captions", "the topic that the captions go to"),
}
"""The default of each argument, and what it is."""
TOPICS = ("image", "detections", "captions")


def generate_launch_description() -> LaunchDescription:
    """Return what `ros2 launch` starts."""
    arguments = [
        DeclareLaunchArgument(name, default_value=default, description=description)
        for name, (default, description) in ARGUMENTS.items()
    ]
    node = Node(
        package="patchcaption_ros",
        executable="captions",
        parameters=[{name: LaunchConfiguration(name) for name in ARGUMENTS if name not in TOPICS}],
        remappings=[(name, LaunchConfiguration(name)) for name in TOPICS],
        output="screen",
    )
    return LaunchDescription([*arguments, node])
